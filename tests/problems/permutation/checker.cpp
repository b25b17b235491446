#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

int main() {
    std::ifstream input("input"), output("output"), expected("expected");
    int n, number, before = -1, count = 0;
    input >> n;
    std::string word;
    if (expected >> word && word == "none") {
        if (output >> word && word == "none") return 0;
        output.clear();
        output.seekg(0);
    }
    std::vector<bool> seen(n + 1);
    while (output >> number) {
        if (number < 1 || number > n || seen[number]) {
            std::cout << number << " is too much\n";
            return 1;
        }
        if (before > 0 && std::abs(number - before) == 1) {
            std::cout << before << " and " << number << " are neighbours\n";
            return 1;
        }
        seen[number] = true;
        before = number;
        count++;
    }
    std::cout << count << " of " << n << '\n';
    return count == n ? 0 : 1;
}
