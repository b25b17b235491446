#include <cstdio>

int main() {
    double radius;
    if (std::scanf("%lf", &radius) == 1) std::printf("area %.9f\n", 3.1416 * radius * radius);
}
